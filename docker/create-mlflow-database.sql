CREATE DATABASE mlflow OWNER samstudy;
