"""One module a command; none imports torch, pandas or matplotlib before it runs."""

from objbench.commands.catalog import info, list_, plugins
from objbench.commands.check import check
from objbench.commands.data import data
from objbench.commands.new import new
from objbench.commands.predict import predict
from objbench.commands.report import report
from objbench.commands.run import run
from objbench.commands.score import score
from objbench.commands.show import show
from objbench.commands.verify import verify

COMMANDS = [run, report, show, list_, info, plugins, data, score, verify, check, new, predict]
