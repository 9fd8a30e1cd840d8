"""The residual map x − Wᵀ diag(scale) relu(W x + b) of SLL and CPL layers, dense and convolutional."""
