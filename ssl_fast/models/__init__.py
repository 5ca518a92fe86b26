"""Networks: timm backbones, projector and predictor heads, the momentum teacher."""
