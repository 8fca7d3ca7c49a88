"""What all Hugging Face handlers share: one loader, weights of 8 bits, requests and replies as pipelines have them."""
