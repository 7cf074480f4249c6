"""What tests of several rooms share: stand-ins that behave, and nothing that asserts."""
