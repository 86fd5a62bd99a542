"""Placements of one model compared by measuring them."""
