"""What a request may say: one pydantic model a body. `bodies` reads them from the wire, endpoints obey them."""
