# TEMPORARY: replaced before anything is committed
def read_torch(path):
    import torch
    return {k: v.numpy() for k, v in torch.load(path, weights_only=True).items()}
