"""Pages that need nothing but a browser: what the pictures of a placement, a plan and a validation share."""
