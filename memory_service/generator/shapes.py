"""The only words used for tensor dimensions in this package.

A shape string such as "*batch layer key value" is made of these words; a test fails on any other.
`*batch` stands for any number of leading dimensions, none included.
"""

DIMENSIONS = {
    "batch": "independent contexts, memories or requests",
    "row": "sequences in one forward pass of the base model; a multiple of batch",
    "layer": "adapted modules in order (one a decoder layer, where one module is adapted)",
    "token": "tokens of a chunk or prompt",
    "d_model": "width of the residual stream of the base model",
    "key": "r_k, width of keys and queries",
    "value": "r_v, width of values",
    "column": "columns of a state: value for svd, key + value for ridge",
    "feature": "what the base model knows at a token: d_model, or d_in + d_model for next_token",
    "gate": "scores of a token that a read-out weighs it by (one for ridge, none for svd)",
    "rank": "rank of an exported LoRA",
    "d_in": "inputs of an adapted linear module",
    "d_out": "outputs of an adapted linear module",
}
