"""Models by the hub's id where a folder does: named, pinned to a commit, fetched, pushed. Free of Ray and torch.

Tokens are read by `huggingface_hub` from its own places (HF_TOKEN, `hf auth login`); nothing here sees or prints one.
"""
