"""When pushes become a step: one file a policy, all of the shape of `base.PolicyRule`."""
