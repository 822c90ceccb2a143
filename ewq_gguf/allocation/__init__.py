"""Which type each tensor gets: entropy, EWQ, presets, the solver, and plans as files."""
