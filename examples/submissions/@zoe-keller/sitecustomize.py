import sys

sys.dont_write_bytecode = True
print("sitecustomize of zoe")
