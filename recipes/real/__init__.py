"""An aligned parent made from a small real chat model."""
