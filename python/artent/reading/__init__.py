"""Where weight updates are read: live models, PEFT adapters, checkpoints. ``artent.checkpoints`` puts it together."""
