"""Every pixel labelled: RGB, hyperspectral and PolSAR scenes."""
