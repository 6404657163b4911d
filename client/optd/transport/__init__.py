"""How calls reach a server: a small seam (`base`), and the lanes behind it."""
