"""One module a measure: on the model (perplexity) and on the text it wrote (free text)."""
