"""How one env runner steps its envs: one loop, and what happens at each of its steps."""
