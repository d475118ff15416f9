"""Clip recognition and the policies that decide which frames and pixels are computed."""
