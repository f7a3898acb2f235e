"""Memory cores: stateless modules that step with resets of single environments."""
