"""Local steps: a worker takes many steps of its own, then its difference to the global weights travels as a gradient.

`schedule`, `fragments` and `speeds` say when what is sent, without arrays, sockets or clocks; `worker` follows them,
for any kind of local weights; `outer` knows the job. `arrays` is the face for numpy; that for torch is
`optd.torch.local_steps`. Open `worker` first.
"""
