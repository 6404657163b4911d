"""The services of the contract, one file each: messages in, engine calls, messages out. No decisions."""
