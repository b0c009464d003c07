"""Makes engines of the network and checks every backend against reference values."""
