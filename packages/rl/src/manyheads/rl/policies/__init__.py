"""Networks of an agent: encoder, core, heads."""
