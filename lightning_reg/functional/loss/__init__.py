"""Terms of a loss, and adversarial inputs."""
