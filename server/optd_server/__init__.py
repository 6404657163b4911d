"""The server `optd`: owns jobs (weights, groups, optimizer state) and applies the steps that workers push."""
