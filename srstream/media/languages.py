"""Converts between the language codes that different containers use."""

from __future__ import annotations

import re

QUICKTIME_LANGUAGES = frozenset(
    {
        "eng", "fra", "ger", "ita", "dut", "sve", "spa", "dan", "por", "nor", "heb", "jpn", "ara",
        "fin", "gre", "ice", "mlt", "tur", "chi", "urd", "hin", "tha", "kor", "lit", "pol", "hun",
        "est", "lav", "rus", "iri", "alb", "ron", "ces", "slk", "slv", "yid", "mac", "bul", "ukr",
        "bel", "uzb",
    }
)  # fmt: skip
"""The languages that libavformat can write into a MOV, as it spells them."""

_LANGUAGE_SPELLINGS = {
    "deu": "ger", "fre": "fra", "nld": "dut", "swe": "sve", "ell": "gre", "isl": "ice",
    "zho": "chi", "gle": "iri", "sqi": "alb", "rum": "ron", "cze": "ces", "slo": "slk",
    "mkd": "mac", "tib": "bod", "wel": "cym", "baq": "eus", "per": "fas", "arm": "hye",
    "geo": "kat", "mao": "mri", "may": "msa", "bur": "mya",
}  # fmt: skip
"""ISO 639-2 has two codes for some languages; QuickTime knows one, and a few of its own."""

_TWO_LETTERS: dict[str, str] = dict(
    re.findall(
        r"(\w\w)=(\w{3})",
        "aa=aar ab=abk ae=ave af=afr ak=aka am=amh an=arg ar=ara as=asm av=ava ay=aym az=aze "
        "ba=bak be=bel bg=bul bh=bih bi=bis bm=bam bn=ben bo=bod br=bre bs=bos ca=cat ce=che "
        "ch=cha co=cos cr=cre cs=ces cu=chu cv=chv cy=cym da=dan de=deu dv=div dz=dzo ee=ewe "
        "el=ell en=eng eo=epo es=spa et=est eu=eus fa=fas ff=ful fi=fin fj=fij fo=fao fr=fra "
        "fy=fry ga=gle gd=gla gl=glg gn=grn gu=guj gv=glv ha=hau he=heb hi=hin ho=hmo hr=hrv "
        "ht=hat hu=hun hy=hye hz=her ia=ina id=ind ie=ile ig=ibo ii=iii ik=ipk io=ido is=isl "
        "it=ita iu=iku ja=jpn jv=jav ka=kat kg=kon ki=kik kj=kua kk=kaz kl=kal km=khm kn=kan "
        "ko=kor kr=kau ks=kas ku=kur kv=kom kw=cor ky=kir la=lat lb=ltz lg=lug li=lim ln=lin "
        "lo=lao lt=lit lu=lub lv=lav mg=mlg mh=mah mi=mri mk=mkd ml=mal mn=mon mr=mar ms=msa "
        "mt=mlt my=mya na=nau nb=nob nd=nde ne=nep ng=ndo nl=nld nn=nno no=nor nr=nbl nv=nav "
        "ny=nya oc=oci oj=oji om=orm or=ori os=oss pa=pan pi=pli pl=pol ps=pus pt=por qu=que "
        "rm=roh rn=run ro=ron ru=rus rw=kin sa=san sc=srd sd=snd se=sme sg=sag si=sin sk=slk "
        "sl=slv sm=smo sn=sna so=som sq=sqi sr=srp ss=ssw st=sot su=sun sv=swe sw=swa ta=tam "
        "te=tel tg=tgk th=tha ti=tir tk=tuk tl=tgl tn=tsn to=ton tr=tur ts=tso tt=tat tw=twi "
        "ty=tah ug=uig uk=ukr ur=urd uz=uzb ve=ven vi=vie vo=vol wa=wln wo=wol xh=xho yi=yid "
        "yo=yor za=zha zh=zho zu=zul ",
    )
)
"""ISO 639-1 to ISO 639-2."""

_SEPARATORS = re.compile(r"[-_,;/ ]")


def spelled_language(language: str | None) -> str:
    """Return the one spelling used for a language; `und` where there is none.

    Only the first code of a longer tag counts (en-GB, or MPEG-TS's eng,deu for two channels).

    >>> spelled_language("en-US") == spelled_language("ENG") == "eng"
    True
    """
    code = _SEPARATORS.split((language or "").strip("\0 ").lower())[0] or "und"
    code = _TWO_LETTERS.get(code, code)
    return _LANGUAGE_SPELLINGS.get(code, code)


def three_letters(language: str) -> str:
    """Return a language as MP4 can store it: unchanged or as its three-letter code."""
    if len(language) == 3 and language.isascii() and language.isalpha():
        return language.lower()
    code = spelled_language(language)
    return code if len(code) == 3 and code.isascii() and code.isalpha() else "und"
