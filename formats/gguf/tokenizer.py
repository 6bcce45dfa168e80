def tokenizer_metadata(t,a,pre_tokenizer=None): return {}
def tokenizer_from_metadata(m,where): return None
