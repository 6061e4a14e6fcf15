"""CIFAR-10 in the forms that people have it in."""
