"""The server `optd`: it owns jobs (weights, groups, optimizer state) and applies the gradients that workers push."""
