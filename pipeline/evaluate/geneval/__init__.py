"""GenEval: do pictures show the objects, numbers, colours and places that their prompts name? (arXiv 2310.11513)"""
