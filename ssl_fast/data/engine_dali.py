"""placeholder"""
def unavailable(dataset):
    return "x"
