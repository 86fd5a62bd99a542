"""A conversation in the terminal, with an engine of its own or with a server.

A `speaker.Speaker` answers; `session.Session` reads lines, obeys commands and shows what comes.
"""
