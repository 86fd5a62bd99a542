"""The recipe of the embedded model: data, tokenizer, training, export, evaluation and card, in this order.

``python -m ktllama.reference.tiny_r1`` makes all of it again from nothing but a seed.
"""
