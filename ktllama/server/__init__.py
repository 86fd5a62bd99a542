"""R1 over HTTP: OpenAI's and DeepSeek's API on top of an engine process.

`app.create_app` makes the application; an endpoint is a module (`chat`, `completions`, `embeddings`, `tokens`),
`protocol` holds what their bodies may say. Needs the extra `serve`.
"""
