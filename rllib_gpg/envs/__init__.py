"""Envs from elsewhere, made ready for RLlib; one module per simulator, each an optional extra."""
