"""From what people pass as `params` to the flat ranges of a job's groups, and back.

Trees, groups, rules, arrays and the frames that their numbers travel in. Nothing here knows a session, and what a
gradient is lies in `optd.exchange`. Open `groups` first, then `flat_view`.
"""
