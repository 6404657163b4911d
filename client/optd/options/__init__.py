"""The options of groups and of a job as a worker sees and changes them: `param_groups` and what schedules make of it.

The server declares the options and checks their values; nothing here does. Open `mirror` first.
"""
