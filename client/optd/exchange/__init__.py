"""What a step sends and receives: gradients out, weights in, and the errors that lossy encodings leave behind.

Epochs, sequences and retries belong to `optd.session`; optimizer state is in `optd.state`. Open `outgoing` first.
"""
