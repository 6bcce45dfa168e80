def read_tokenizer(p,vocab_size): return None
def write_tokenizer(t): return {}
