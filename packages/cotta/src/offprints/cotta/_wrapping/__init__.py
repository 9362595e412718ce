"""What the wrappers share: how models are asked, what they must leave as it was, and states that resume bit for bit."""
