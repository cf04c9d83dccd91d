"""The jobs behind the commands: train, resume, evaluate, train an original."""
