"""Goyal et al. 2016: do maps agree with people, which words count, do maps foresee failure?"""
