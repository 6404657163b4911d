"""From what people pass as `params` to the flat ranges of a job's groups, and back.

Here are trees, groups, rules, arrays, and the frames that carry their numbers. Nothing here knows a session; gradients
are read in `optd.exchange`. Open `groups` first, then `flat_view`.
"""
