@echo off
rem Starts the file kata beside this one, in cmd and in PowerShell: .\kata start
setlocal
set "PYTHON=python"
where /q py && set "PYTHON=py -3"
%PYTHON% "%~dp0kata" %*
exit /b %ERRORLEVEL%
