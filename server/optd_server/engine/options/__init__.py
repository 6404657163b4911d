"""The groups of a job and their options: registration, resolution, rules by name, schedules in force, history.

Options are declared in `optim`, next to the algorithms; this folder checks and resolves them against those
declarations. How a step uses them is in `engine/step`. Open `groups.py` first, then `resolution.py`.
"""
