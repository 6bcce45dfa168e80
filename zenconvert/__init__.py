"""zenconvert: convert, quantize and verify language-model checkpoints."""
