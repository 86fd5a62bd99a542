"""llama.cpp under a placement against the reference: what differs, how much, where first, and whether it may.

``validation`` runs the two and hands what they computed to the rest, which is arithmetic on arrays and knows neither.
"""
