"""What a checkpoint is, whatever file it came from: tensors, sizes, tokenizer, families."""
