"""The commands behind ``artent.cli``, a module each: ``run(options)`` does what the parser understood."""
