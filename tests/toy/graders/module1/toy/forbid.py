"""What the toy exercise bans."""

from llmkata.checks import Forbid

FORBID = Forbid(functions={"torch.softmax": "Write it with exp and sum."}, modules={"scipy.special": "It has softmax, too."})
